"""Matrix products by light, simulated: meshes of interferometers, what disturbs them, what they cost, and a matrix machine.

from kpt_lab.frontier.photonic import PhotonicAccelerator

machine = PhotonicAccelerator(wavelength_channels=64, precision_bits=6)
y = machine.photonic_matmul(a, b)
print(machine.report())  # modelled energy, every constant with its source
"""

from kpt_lab.frontier.photonic.accelerator import OPTICAL_POWER, SYMBOL_RATE, PhotonicAccelerator, PrecisionWarning, Program
from kpt_lab.frontier.photonic.energy import Constant, Constants, Counts, EnergyReport, published_efficiency
from kpt_lab.frontier.photonic.mesh import Mesh, SVDMesh, decompose, fidelity, random_unitary, svd
from kpt_lab.frontier.photonic.noise import (
    Johnson,
    Noise,
    PhaseError,
    Quantisation,
    Shot,
    SplitterError,
    detect,
    detected_photons,
    disturbed,
    phase_bits,
    photons_for,
    received_bits,
    shot_bits,
)
from kpt_lab.frontier.photonic.technique import core_target, forward, photonic, techniques
from kpt_lab.frontier.photonic.thermal import Ambient, Controller, Drift, drift

__all__ = [
    "OPTICAL_POWER",
    "SYMBOL_RATE",
    "Ambient",
    "Constant",
    "Constants",
    "Controller",
    "Counts",
    "Drift",
    "EnergyReport",
    "Johnson",
    "Mesh",
    "Noise",
    "PhaseError",
    "PhotonicAccelerator",
    "PrecisionWarning",
    "Program",
    "Quantisation",
    "SVDMesh",
    "Shot",
    "SplitterError",
    "core_target",
    "decompose",
    "detect",
    "detected_photons",
    "disturbed",
    "drift",
    "fidelity",
    "forward",
    "phase_bits",
    "photonic",
    "photons_for",
    "published_efficiency",
    "random_unitary",
    "received_bits",
    "shot_bits",
    "svd",
    "techniques",
]
