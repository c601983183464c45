"""One self-contained HTML page of tables and interactive plots."""

from ntkprefix.report.page import Section as Section
from ntkprefix.report.page import Table as Table
from ntkprefix.report.page import write_report as write_report
from ntkprefix.report.plots import Line as Line
from ntkprefix.report.plots import Plot as Plot
from ntkprefix.report.plots import smooth as smooth
from ntkprefix.report.text import number as number
from ntkprefix.report.text import short as short
