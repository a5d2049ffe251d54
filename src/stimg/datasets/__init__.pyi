from ._collection import Collection as Collection
from ._dlpfc import dlpfc as dlpfc
from ._her2st import her2st as her2st
from ._hest import hest as hest
from ._stimage_1k4m import stimage_1k4m as stimage_1k4m
from ._synthetic import synthetic as synthetic
from ._synthetic_1k4m import synthetic_1k4m as synthetic_1k4m
from ._synthetic_histology import synthetic_histology as synthetic_histology
