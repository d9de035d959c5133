"""What a run did, for people: a callback that records it, and a page, a text or JSON made of what was recorded."""

from hypergrad.report.page import write_report as write_report
from hypergrad.report.record import Record as Record
from hypergrad.report.text import summary as summary
from hypergrad.report.text import text_report as text_report
