"""R's mclust, where it is installed (Debian: `r-cran-mclust`)."""

import subprocess
import tempfile
from pathlib import Path

import numpy as np

PROGRAM = """
library(mclust); set.seed(2020)
values <- as.matrix(read.csv(commandArgs(TRUE)[1], header = FALSE))
fit <- Mclust(values, G = as.integer(commandArgs(TRUE)[2]), modelNames = "EEE", verbose = FALSE)
writeLines(as.character(fit$classification), commandArgs(TRUE)[3])
"""


def mclust(values: np.ndarray, n_domains: int) -> np.ndarray | None:
    """Cluster with the model EEE; nothing where mclust is not installed or gives up."""
    with tempfile.TemporaryDirectory() as folder:
        values_file, labels_file, program = (str(Path(folder) / name) for name in ("values.csv", "labels.txt", "run.R"))
        np.savetxt(values_file, values, delimiter=",")
        Path(program).write_text(PROGRAM)
        try:
            command = ["Rscript", program, values_file, str(n_domains), labels_file]
            subprocess.run(command, check=True, capture_output=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            print("mclust:", error)
            return None
        return np.loadtxt(labels_file, dtype=int)
