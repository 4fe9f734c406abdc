"""Importers of HDF5 files in the layouts of ANI-1x, SPICE and MACE."""

import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.units import Bohr, Hartree
from mutations import mutants, outcomes

from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.hdf5 import HEAP
from ase_biasgrad.data.importers import ImportOptions, import_files

RANDOM = np.random.default_rng(0)
OPTIONS = ImportOptions()
ENERGIES = {"H2O": -76.4, "CH4": -40.5}  # Hartree


def geometries(name: str, frames: int) -> np.ndarray:
    return molecule(name).positions + RANDOM.normal(0, 0.02, (frames, len(molecule(name)), 3))


def write_ani(path: Path, frames: int = 5) -> dict[str, dict[str, np.ndarray]]:
    """A file as `dataloader.py` of aiqm/ANI1x_datasets reads it."""
    groups = {}
    for name in ENERGIES:
        n = len(molecule(name))
        ccsd = ENERGIES[name] + RANDOM.normal(0, 0.01, frames)
        ccsd[1:3] = np.nan
        groups[name] = {
            "atomic_numbers": molecule(name).numbers.astype(np.uint8),
            "coordinates": geometries(name, frames).astype(np.float32),
            "wb97x_dz.energy": ENERGIES[name] + RANDOM.normal(0, 0.01, frames),
            "wb97x_dz.forces": RANDOM.normal(0, 0.02, (frames, n, 3)).astype(np.float32),
            "wb97x_dz.dipole": RANDOM.normal(0, 1, (frames, 3)).astype(np.float32),
            "wb97x_dz.cm5_charges": RANDOM.normal(0, 1, (frames, n)).astype(np.float32),
            "ccsd(t)_cbs.energy": ccsd,
        }
    with h5py.File(path, "w") as file:
        for name, columns in groups.items():
            for key, values in columns.items():
                file.create_group(name) if name not in file else None
                file[name][key] = values
    return groups


def write_spice(path: Path, smiles: str = "[O:1]([H:2])[H:3]", units: bool = True) -> dict:
    """A file as `downloader.py` of openmm/spice-dataset writes it."""
    units_of = {
        "conformations": "bohr",
        "formation_energy": "hartree",
        "dft_total_energy": "hartree",
        "dft_total_gradient": "hartree/bohr",
        "mbis_charges": "elementary_charge",
    }
    columns = {
        "conformations": (geometries("H2O", 4) / Bohr).astype(np.float32),
        "formation_energy": RANDOM.normal(-0.3, 0.01, 4),
        "dft_total_energy": RANDOM.normal(-76.4, 0.01, 4),
        "dft_total_gradient": RANDOM.normal(0, 0.02, (4, 3, 3)).astype(np.float32),
        "mbis_charges": np.zeros((4, 3, 1), np.float32),
    }
    with h5py.File(path, "a") as file:
        group = file.create_group(smiles.replace("/", ""))
        group.create_dataset("subset", data=["SPICE Water"], dtype=h5py.string_dtype())
        group.create_dataset("smiles", data=[smiles], dtype=h5py.string_dtype())
        group.create_dataset("atomic_numbers", data=[8, 1, 1], dtype=np.int16)
        for key, values in columns.items():
            stored = group.create_dataset(key, data=values)
            if units:
                stored.attrs["units"] = units_of[key]
    return columns


def write_mace(path: Path, configurations: list[dict], per_batch: int = 12) -> None:
    """A file as `save_configurations_as_HDF5` of mace/data/utils.py writes it."""
    with h5py.File(path, "w") as file:
        file.attrs["drop_last"] = False
        for k, one in enumerate(configurations):
            batch = file.require_group(f"config_batch_{k // per_batch}")
            group = batch.create_group(f"config_{k % per_batch}")
            for key, value in one.items():
                if isinstance(value, dict):
                    inner = group.create_group(key)
                    for name, inside in value.items():
                        inner[name] = "None" if inside is None else inside
                else:
                    group[key] = "None" if value is None else value


def copper_configuration(**changes) -> dict:
    atoms = bulk("Cu", cubic=True)
    properties = {
        "energy": float(RANDOM.normal(-1, 0.1)),
        "forces": RANDOM.normal(0, 0.1, (4, 3)),
        "stress": RANDOM.normal(0, 0.01, 6),
        "virials": None,
        "dipole": None,
    }
    properties |= changes.pop("properties", {})
    weights = dict.fromkeys(properties, 1.0) | {"virials": 0.0, "dipole": 0.0}
    return {
        "atomic_numbers": atoms.numbers,
        "positions": atoms.positions + RANDOM.normal(0, 0.05, (4, 3)),
        "properties": properties,
        "cell": atoms.cell.array,
        "pbc": (True, True, True),
        "weight": 1.0,
        "property_weights": weights | changes.pop("property_weights", {}),
        "config_type": "Default",
        "head": "Default",
        **changes,
    }


def test_ani_takes_the_level_that_all_frames_have(tmp_path):
    groups = write_ani(tmp_path / "ani1x.h5")
    report = import_files([tmp_path / "ani1x.h5"], tmp_path / "x.h5")
    (said,) = report.conversions
    assert "energies Hartree → eV" in said
    assert "lengths in Å (ANI-1x's own)" in said
    assert "energy: in 10 of 10 frames, from wb97x_dz.energy" in said
    assert "forces: in 10 of 10 frames, from wb97x_dz.forces" in said
    assert "left out: ccsd(t)_cbs.energy (energy) in 10 frames; take it with --key" in said
    assert "left out: wb97x_dz.cm5_charges (charge or spin) in 10 frames" in said
    assert "--key wb97x_dz.dipole=wb97x_dz.dipole" in said
    data = Dataset(tmp_path / "x.h5")
    frame = data[int(np.flatnonzero(data.compositions()[:, 6])[2])]  # HDF5 sorts groups by name
    methane = groups["CH4"]
    assert frame.energy == pytest.approx(methane["wb97x_dz.energy"][2] * Hartree, rel=1e-12)
    np.testing.assert_allclose(frame.forces, methane["wb97x_dz.forces"][2] * Hartree, rtol=1e-6)
    np.testing.assert_allclose(frame.positions, methane["coordinates"][2], rtol=1e-6)


def test_ani_does_not_mix_levels_of_theory(tmp_path):
    groups = write_ani(tmp_path / "ani1x.h5")
    options = replace(OPTIONS, keys={"energy": "ccsd(t)_cbs.energy"})
    with pytest.raises(DataError, match=r"frame 1 of CH4\): has no labels .*wb97x_dz.*--skip-unl"):
        import_files([tmp_path / "ani1x.h5"], tmp_path / "x.h5", options)
    options = replace(options, skip_unlabelled=True)
    report = import_files([tmp_path / "ani1x.h5"], tmp_path / "x.h5", options)
    assert (report.frames, report.skipped) == (6, 4)
    data = Dataset(tmp_path / "x.h5")
    assert data.count("forces") == 0
    expected = groups["CH4"]["ccsd(t)_cbs.energy"][[0, 3, 4]] * Hartree
    found = [f.energy for f in data if 6 in f.numbers]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_labels_that_single_frames_lack_are_missing_there(tmp_path):
    write_ani(tmp_path / "ani1x.h5")
    with h5py.File(tmp_path / "ani1x.h5", "a") as file:
        file["H2O/wb97x_dz.forces"][3] = np.nan
        del file["CH4/wb97x_dz.forces"]
    import_files([tmp_path / "ani1x.h5"], tmp_path / "x.h5")
    data = Dataset(tmp_path / "x.h5")
    assert [frame.forces is None for frame in data] == 5 * [True] + [False] * 3 + [True, False]
    assert data.count("energy") == 10


@pytest.mark.parametrize("units", [True, False])
def test_spice_gradients_become_forces(tmp_path, units):
    columns = write_spice(tmp_path / "SPICE.hdf5", units=units)
    report = import_files([tmp_path / "SPICE.hdf5"], tmp_path / "x.h5")
    (said,) = report.conversions
    assert "energies hartree → eV, lengths bohr → Å (SPICE's own)" in said
    assert "forces in hartree/bohr" in said
    assert "from dft_total_gradient with its sign changed" in said
    assert "left out: formation_energy (energy) in 4 frames" in said
    frame = Dataset(tmp_path / "x.h5")[1]
    assert frame.energy == pytest.approx(columns["dft_total_energy"][1] * Hartree, rel=1e-12)
    expected = -columns["dft_total_gradient"][1] * Hartree / Bohr
    np.testing.assert_allclose(frame.forces, expected, rtol=1e-6)
    np.testing.assert_allclose(frame.positions, columns["conformations"][1] * Bohr, rtol=1e-6)


def test_spice_says_its_units_itself(tmp_path):
    write_spice(tmp_path / "SPICE.hdf5")
    with h5py.File(tmp_path / "SPICE.hdf5", "a") as file:
        (group,) = file.values()
        group["conformations"].attrs["units"] = "angstrom"
        group["conformations"][...] *= Bohr
    import_files([tmp_path / "SPICE.hdf5"], tmp_path / "x.h5")
    bond = Dataset(tmp_path / "x.h5")[0].atoms().get_distance(0, 1)
    assert bond == pytest.approx(0.97, abs=0.1)
    with pytest.raises(DataError, match="its energy unit is hartree, and you say eV"):
        import_files([tmp_path / "SPICE.hdf5"], tmp_path / "y.h5", ImportOptions(energy_unit="eV"))


@pytest.mark.parametrize(
    ("ion", "charge"),
    [("[O+2:1]([H:2])[H:3]", r"\+2"), ("[O@-:1]([H:2])[H+:3]", None), ("[O--]([H])[H:3]", "-2")],
)
def test_charged_molecules_of_spice_are_not_taken_for_neutral_ones(tmp_path, ion, charge):
    write_spice(tmp_path / "SPICE.hdf5")
    write_spice(tmp_path / "SPICE.hdf5", ion)
    if charge is None:
        import_files([tmp_path / "SPICE.hdf5"], tmp_path / "x.h5")
        return
    with pytest.raises(DataError, match=f"H2O: .*charge {charge}.*cannot tell them apart"):
        import_files([tmp_path / "SPICE.hdf5"], tmp_path / "x.h5")


def test_mace_frames_come_in_their_order_with_the_labels_that_count(tmp_path):
    configurations = [copper_configuration() for _ in range(14)]
    configurations[2] = copper_configuration(properties={"forces": None, "stress": None})
    configurations[3] = copper_configuration(
        properties={"energy": 0.0}, property_weights={"energy": 0.0}
    )
    virial = RANDOM.normal(0, 0.5, (3, 3))
    virial += virial.T
    configurations[4] = copper_configuration(
        properties={"stress": np.zeros(6), "virials": virial},
        property_weights={"stress": 0.0, "virials": 1.0},
        weight=3.0,
    )
    write_mace(tmp_path / "train.h5", configurations)
    report = import_files([tmp_path / "train.h5"], tmp_path / "x.h5")
    (said,) = report.conversions
    assert "the layout is that of MACE, where a label of weight 0 is a missing one" in said
    assert "energy: in 13 of 14 frames, from energy" in said
    assert "forces: in 13 of 14 frames" in said
    assert "stress: in 13 of 14 frames" in said
    assert "left out: weight (weight) in 1 frames" in said
    data = Dataset(tmp_path / "x.h5")
    for k in (0, 1, 11, 13):
        expected = configurations[k]
        assert data[k].energy == expected["properties"]["energy"]
        np.testing.assert_array_equal(data[k].forces, expected["properties"]["forces"])
        np.testing.assert_array_equal(data[k].stress, expected["properties"]["stress"])
        np.testing.assert_array_equal(data[k].positions, expected["positions"])
        np.testing.assert_array_equal(data[k].cell, expected["cell"])
    assert data[2].forces is None
    assert data[3].energy is None
    full = -virial / bulk("Cu", cubic=True).get_volume()
    np.testing.assert_allclose(data[4].stress, full[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]])


def test_mace_files_of_before_2024_fill_in_zeros_of_weight_zero(tmp_path):
    configurations = []
    for k in range(3):
        new = copper_configuration()
        weights, properties = new.pop("property_weights"), new.pop("properties")
        if k == 1:
            properties["forces"], weights["forces"] = np.zeros((4, 3)), 0.0
        weights.pop("dipole")
        configurations.append(new | properties | {f"{n}_weight": w for n, w in weights.items()})
    write_mace(tmp_path / "train.h5", configurations)
    import_files([tmp_path / "train.h5"], tmp_path / "x.h5")
    data = Dataset(tmp_path / "x.h5")
    assert [frame.forces is None for frame in data] == [False, True, False]
    assert data.count("stress") == 3


def test_mace_molecules_have_no_stress(tmp_path):
    water = copper_configuration(
        atomic_numbers=molecule("H2O").numbers,
        positions=molecule("H2O").positions,
        properties={"forces": np.full((3, 3), 0.1)},
        cell=np.zeros((3, 3)),
        pbc=(False, False, False),
    )
    write_mace(tmp_path / "train.h5", [water])
    report = import_files([tmp_path / "train.h5"], tmp_path / "x.h5")
    assert "stress: left out in 1 frames that are not periodic" in report.conversions[0]
    assert Dataset(tmp_path / "x.h5")[0].stress is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a/b": np.zeros(3)}, "layout is not that of ANI-1x, SPICE and MACE.*it has a, a/b"),
        ({}, "it has nothing"),
        ({"x": np.zeros(3)}, "layout is not that of"),
        ({"a/atomic_numbers": [8], "a/coordinates": np.zeros((2, 2, 3))}, r"expected \(frames, 1"),
        ({"a/atomic_numbers": [200], "a/coordinates": np.zeros((2, 1, 3))}, "no atomic numbers"),
        (
            {
                "a/atomic_numbers": [8],
                "a/coordinates": np.zeros((2, 1, 3)),
                "a/wb97x_dz.energy": np.zeros(3),
            },
            r"wb97x_dz.energy: has shape \(3,\), expected \(2,\)",
        ),
        (
            {"a/atomic_numbers": [8], "a/coordinates/b": np.zeros((2, 1, 3))},
            "or a damaged one: ",
        ),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, message):
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        for key, values in content.items():
            file[key] = values
    with pytest.raises(DataError, match=f"odd.h5.*{message}"):
        import_files([tmp_path / "odd.h5"], tmp_path / "x.h5")
    assert not (tmp_path / "x.h5").exists()


def test_our_own_files_and_what_is_no_hdf5_go_their_ways(tmp_path):
    write_ani(tmp_path / "ani1x.h5")
    import_files([tmp_path / "ani1x.h5"], tmp_path / "x.h5")
    import_files([tmp_path / "x.h5"], tmp_path / "y.h5")
    np.testing.assert_array_equal(
        [frame.energy for frame in Dataset(tmp_path / "x.h5")],
        [frame.energy for frame in Dataset(tmp_path / "y.h5")],
    )
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(DataError, match=r"text\.h5: no HDF5 file of ANI-1x"):
        import_files([tmp_path / "text.h5"], tmp_path / "z.h5")


WRITERS = {
    "ani.hdf5": lambda path: write_ani(path, 3),
    "spice.hdf5": write_spice,
    "mace.hdf5": lambda path: write_mace(path, [copper_configuration() for _ in range(4)]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_names_that_are_no_text_are_refused(tmp_path, name):
    WRITERS[name](tmp_path / name)
    with h5py.File(tmp_path / name, "a") as file:
        group = next(iter(file.values()))
        group = next(iter(group.values())) if name == "mace.hdf5" else group
        group[b"forc\x80s"] = np.zeros(3)
    with pytest.raises(DataError, match=rf"{name}.*the name b'forc\\x80s' is no text"):
        import_files([tmp_path / name], tmp_path / "x.h5", ImportOptions(accept=True))


@pytest.mark.parametrize("count", [60, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", WRITERS)
def test_mutated_files_are_refused_or_give_a_dataset(tmp_path, name, count):
    WRITERS[name](tmp_path / name)

    def judge(path: Path) -> str:
        output = path.with_suffix(".h5")
        output.unlink(missing_ok=True)
        import_files([path], output, ImportOptions(accept=True), progress=False)
        return "a dataset"

    content = (tmp_path / name).read_bytes()
    said = outcomes(mutants(content, count, 1), tmp_path / name, judge)
    assert said["refused"] > 0.3 * count


@pytest.mark.parametrize("length", [0, 2**40, 2**63])
def test_texts_that_would_make_hdf5_go_on_for_ever_are_refused(tmp_path, length):
    write_spice(tmp_path / "x.hdf5")
    content = bytearray((tmp_path / "x.hdf5").read_bytes())
    first = content.index(HEAP) + 16
    content[first : first + 16] = bytes(8) + length.to_bytes(8, "little")  # a free object

    def judge(path: Path) -> str:
        with pytest.raises(DataError, match=r"the collection of texts at byte .* is damaged") as no:
            import_files([path], tmp_path / "y.h5")
        raise no.value

    cases = [("free", bytes(content))]
    assert outcomes(cases, tmp_path / "x.hdf5", judge) == {"refused": 1}


def test_texts_whose_kind_is_damaged_are_refused(tmp_path):
    write_mace(tmp_path / "x.hdf5", [copper_configuration()])
    content, kind = (tmp_path / "x.hdf5").read_bytes(), b"\x19\x01\x01\x00\x10\x00\x00\x00"
    places = [found.start() + 1 for found in re.finditer(re.escape(kind), content)]
    assert len(places) > 2
    cases = [
        (f"{place}: {other}", content[:place] + bytes([other]) + content[place + 1 :])
        for place in places
        for other in range(16)
        if other != 1
    ]

    def judge(path: Path) -> str:
        (tmp_path / "y.h5").unlink(missing_ok=True)
        import_files([path], tmp_path / "y.h5", ImportOptions(accept=True), progress=False)
        return "a dataset"  # of a file that is still sound

    assert outcomes(cases, tmp_path / "x.hdf5", judge)["refused"] > 0.5 * len(cases)
