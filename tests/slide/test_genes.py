from __future__ import annotations

import numpy as np

import stimg
from stimg._slide._genes import to_human, vocabulary_rows


def test_mouse_genes_take_their_human_names_and_stay_unique():
    names = np.array(["Gfap", "1110002E22Rik", "GAPDH", "Gapdh", "Unknown"])
    assert to_human(names).tolist() == ["GFAP", "C4orf54", "GAPDH", "Gapdh", "Unknown"]


def test_rows_are_found_by_own_name_before_the_orthologs():
    genes = np.array(["GFAP", "Mobp", "SNAP25"])
    assert vocabulary_rows(np.array(["Gfap", "Mobp", "none"]), genes).tolist() == [0, 1, -1]
    assert vocabulary_rows(np.array(["Gfap", "GFAP"]), genes).tolist() == [-1, 0]


def test_both_species_share_vocabulary_rows(make_slide):
    human, mouse = make_slide(seed=0), make_slide(seed=1)
    names = ["GFAP", "MOBP", "SNAP25", "PLP1", "MBP"]
    human.var_names = [*names, *human.var_names[5:]]
    mouse.var_names = [*(name.capitalize() for name in names), *mouse.var_names[5:]]
    for slide in (human, mouse):
        stimg.pp.select_genes(slide, genes=list(slide.var_names[:40]))
    patches = stimg.pp.to_patches([human, mouse], size=8, n_channels=24, orthologs=True)
    assert len(patches.genes) == 40
    assert set(names) <= set(patches.genes)
    apart = stimg.pp.to_patches([human, mouse], size=8, n_channels=24)
    assert {"Gfap", "GFAP"} <= set(apart.genes)


def test_a_model_of_human_genes_embeds_a_mouse_slide(make_slide, trained):
    slide = make_slide()
    human = stimg.models.Model(trained.network, trained.genes.copy(), trained.card)
    human.genes[:3] = ["GFAP", "MOBP", "SNAP25"]
    mouse = slide.copy()
    mouse.var_names = [
        dict(zip(trained.genes[:3], ["Gfap", "Mobp", "Snap25"], strict=True)).get(name, name)
        for name in slide.var_names
    ]
    stimg.tl.embed(slide, trained)
    stimg.tl.embed(mouse, human)
    np.testing.assert_array_equal(mouse.obsm["X_stimg"], slide.obsm["X_stimg"])
