"""What run folders and result files hold, as tables and plots: one kind per file."""

from ntkprefix.records.base import Kind as Kind
from ntkprefix.records.base import Record as Record
from ntkprefix.records.read import read_all as read_all
from ntkprefix.records.registry import KINDS as KINDS
from ntkprefix.records.registry import sections as sections
