"""The time axis: recurrent layers seen step by step."""

from signalprop.recurrent.axis import Gate as Gate
from signalprop.recurrent.axis import TimeAxis as TimeAxis
from signalprop.recurrent.record import record as record
