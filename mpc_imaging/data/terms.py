"""Which short texts may stay in a header where Annex E names no action: those that are made of terms of the standard.

A code string (CS) should be one of the standard's own terms, and a short text (LO, SH) often is, but nothing stops
anybody from writing a name into them. So every word of a value must be on a list: the words of DICOM's codes for
anatomy, modalities, sides and views (`cleaning.words`), those that the standard's own attributes are called by, and
those of its defined terms that are below. Numbers have two digits at most.
"""

from __future__ import annotations

import functools
import re

from pydicom.charset import python_encoding
from pydicom.datadict import DicomDictionary, keyword_dict

from mpc_imaging.data import cleaning

_CHARACTERS = re.compile(r"[A-Za-z0-9 _.,/()+%-]*")  # no others: they can be letters of any script
_WORDS = re.compile(r"[A-Za-z0-9]+")
_SHORT = re.compile(r"[A-Z]{1,2}[0-9]{0,2}|[0-9]{1,2}[A-Z]{0,2}")  # sides, axes, T1, 2D, 1H
_KEYWORD_PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_TERMS = frozenset(
    """
    3dtof abs acq add addition adv air algo apex arb arterial asl atten attenuated automatic bbb begin biped bpv
    brain breast broadband bscan butterfly cad calc cardiac cardresp cascore cbct cbf cbv ceus cine cmb code
    collinear com combined commercial complete completed cont contains convolution cor corr coverage created csa csi
    cspine cube curve curved cut cyclic datetime dbt dce decy derived des desc determined diff diffusion dir dis2d
    dis3d distortion dixon dns drr drw dsa dsc dti dual dynamic ecg edge edited edw eff ellipse ellipsoid embryo
    emission encoded enhanced epi equal eui64 even express extremity fat fbp feline ffdl ffdr ffp ffs field filtered
    first fisp flash flat fluid fluoro fmri fov frac fractional freq fse fsp full gated gb18030 gbk geometry gfr
    grad gradient grase gray grayscale grey gross gsp handed has haste helical hfdl hfdr hfp hfs high hires hot
    hounsfield ict identity imaginary img inactive inconclusive inferred intensity inter interleaved interpolated
    invalid inverse inverted iodine iron irreversible iso isocenter isotropic iterative keep kev key kspace label
    labelmap landscape last lateral lin linear live local localizer lossless lossy low lspine lung magn magnitude
    man manu manual map masked max maximum mean med median mgml min minimum minip mip mod modified mono monochrome
    monochrome1 monochrome2 mosaic motion mpr mtr multi multiecho multiplication multipoint multisegment nasal
    native nearest net neutral new next no none nonlinear nonparallel norm normal not nrgy nucl num obs observed
    occupancy odd off on online only opaque open orig original orthogonal oscillating other out outer overlap
    oversampled pal palette parallel partial pass passed pca pct peak pending perfusion pet pha phased photo planar
    planned pname point polyline portrait pos post pre predecessor predicted primary processed product prof prop
    proton prox pure quadruped quality quant radial ramp rare raw rcbf rct read real realtime recon rectangle
    rectangular rectilinear reformatted regadenoson regular rejected relative removed reoriented resampled research
    resp respiratory rest resting reversed rgb rho riesz right rotating routine sag scaled scano scatter scoord
    scoord3d scout sealed secondary segmented select semi semiautomatic sense sensitivity separate seq sequenced
    sequential shim short signed single slab smooth smoothed soft som5 somatom spair spatial spectral spi spin
    spiral spoiled square star static std step stir stopped stress strip sub subtracted subtraction successful sum
    super supine survey swi syn synchronized tcoord temporal test tiled tof tomo tomographic topo total tracking
    transmission transverse trig triggered true tse tspine turbo uidref unapproved undefined unedited uniform unit
    unknown unmodified unpaired unsigned unspecified unverified user uuid valid var variable vasc venous verified
    vessel video virtual vol volume vue water wb weighted whole wide wsd x400 x500 xyz ybr yes zero zoom
    """.split()  # noqa: SIM905, one a line is harder to read
)
_MODALITIES = frozenset(
    """
    ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT
    IVUS KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG
    RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SC SEG SM SMR SR SRF STAIN TEXTUREMAP TG US
    VA XA XAPROTOCOL XC
    """.split()  # noqa: SIM905
)
_COLOURS = frozenset(
    """
    ARGB HSV MONOCHROME1 MONOCHROME2 RGB XYB YBR_FULL YBR_FULL_422 YBR_ICT YBR_PARTIAL_420 YBR_PARTIAL_422 YBR_RCT
    """.split()  # noqa: SIM905
) | {"PALETTE COLOR"}
_METHOD = re.compile(r"ISO_(10918_1|14495_1|15444_1|15444_15|13818_2|14496_10|23008_2|18181_1)")
_UNITS = frozenset(("HU", "HU_MOD", "US", "OD", "OD REL", "MGML", "Z_EFF", "ED", "EDW", "PCT", "PVAL"))
_MAKERS = frozenset(
    """
    ag agfa agfa-gevaert aloka canon care carestream co company corp corporation e electric elscint esaote film fuji
    fujifilm g ge gmbh health healthcare healthineers hitachi hologic inc kk konica lorad ltd marconi
    medical mindray minolta nv philips photo picker samsung shimadzu siemens system systems toshiba varian
    """.split()  # noqa: SIM905
)
_KERNEL = re.compile(
    r"[A-Z][a-z]?[0-9]{2}[a-z]{0,2}|FC[0-9]{2}|(STANDARD|SOFT|BONE|BONEPLUS|DETAIL|EDGE|LUNG|CHST|STD)\+?"
)

# Of some attributes the terms are others; the makers of devices are firms.
_OWN = {
    "RescaleType": lambda value: value in _UNITS,
    "ModalityLUTType": lambda value: value in _UNITS,
    "ConvolutionKernel": lambda value: _KERNEL.fullmatch(value) is not None,
    "SpecificCharacterSet": lambda value: value in python_encoding,
    "Modality": lambda value: value in _MODALITIES,
    "PhotometricInterpretation": lambda value: value in _COLOURS,
    "LossyImageCompressionMethod": lambda value: _METHOD.fullmatch(value) is not None,
    "DimensionDescriptionLabel": lambda value: value in keyword_dict,
    "Manufacturer": lambda value: all(word in _MAKERS for word in re.findall(r"[^\s.,]+", value.lower())),
}


def listed(keyword: str, value: str) -> bool:
    """Whether a value of the attribute tells of nobody, as far as lists can tell."""
    value = value.strip()
    if keyword in _OWN:
        return _OWN[keyword](value) or not value
    if not _CHARACTERS.fullmatch(value):
        return False
    return all(word.lower() in _words() or _SHORT.fullmatch(word) for word in _WORDS.findall(value))


@functools.cache
def _words() -> frozenset[str]:
    names = {part.lower() for *_, keyword in DicomDictionary.values() for part in _KEYWORD_PARTS.findall(keyword)}
    return frozenset(name for name in names if len(name) > 2) | _TERMS | cleaning.vocabulary()
