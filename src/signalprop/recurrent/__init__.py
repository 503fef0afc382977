"""The time axis: recurrent layers seen step by step."""

from signalprop.capture.time import Gate as Gate
from signalprop.capture.time import Horizon as Horizon
from signalprop.capture.time import TimeAxis as TimeAxis
from signalprop.recurrent.horizon.result import Exponents as Exponents
from signalprop.recurrent.horizon.result import Gains as Gains
from signalprop.recurrent.record import record as record
