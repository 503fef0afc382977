"""What depth a network should bear: mean-field theory, next to what is measured.

`MeanField` has the maps of variance, correlation and gradient for any activation; `phase_diagram`
draws them over weight and bias variances; `blocks` and `table` have the closed forms of every cure;
`defaults` says what torch's own initialisations mean; `selu_map` and its kin are the moment map of
self-normalising networks; `spectral_law` the singular values of the whole Jacobian; `expect` puts a
traced network's own numbers into the closed forms.
"""

from signalprop.theory import blocks as blocks
from signalprop.theory import table as table
from signalprop.theory.activations import Activation as Activation
from signalprop.theory.blocks import Decay as Decay
from signalprop.theory.defaults import Default as Default
from signalprop.theory.defaults import defaults as defaults
from signalprop.theory.defaults import describe as describe
from signalprop.theory.defaults import drawn_variance as drawn_variance
from signalprop.theory.defaults import linear_default as linear_default
from signalprop.theory.edge import CriticalPoint as CriticalPoint
from signalprop.theory.edge import critical_points as critical_points
from signalprop.theory.edge import critical_weight_variance as critical_weight_variance
from signalprop.theory.expect import BlockExpectation as BlockExpectation
from signalprop.theory.expect import expect as expect
from signalprop.theory.fixed import FixedPoint as FixedPoint
from signalprop.theory.kinks import Kink as Kink
from signalprop.theory.law import SpectralLaw as SpectralLaw
from signalprop.theory.law import spectral_law as spectral_law
from signalprop.theory.meanfield import MeanField as MeanField
from signalprop.theory.meanfield import Trajectory as Trajectory
from signalprop.theory.phase import PhaseDiagram as PhaseDiagram
from signalprop.theory.phase import phase_diagram as phase_diagram
from signalprop.theory.rectified import residual_rectified as residual_rectified
from signalprop.theory.selu import Contraction as Contraction
from signalprop.theory.selu import Region as Region
from signalprop.theory.selu import selu_contraction as selu_contraction
from signalprop.theory.selu import selu_fixed_point as selu_fixed_point
from signalprop.theory.selu import selu_gradient_rate as selu_gradient_rate
from signalprop.theory.selu import selu_iterates as selu_iterates
from signalprop.theory.selu import selu_jacobian as selu_jacobian
from signalprop.theory.selu import selu_map as selu_map
