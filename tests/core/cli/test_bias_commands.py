"""Commands about energy zeros: fit-bias of calculators, rebias, convert-energies, reaction."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.io import read, write
from conftest import small_potential
from helpers import NAMES, biasgrad

from ase_biasgrad import BiasedCalculator, BiasGradCalculator, load_checkpoint, save_checkpoint
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.units import N_ELEMENTS

LEVELS = {"pbe": {1: -13.5, 6: -1030.0, 8: -2040.0}, "r2scan": {1: -13.25, 6: -1033.0, 8: -2047.5}}


def labelled(path, calculator, level: str, names=NAMES, noise: float = 0.0):
    """Molecules, each three times, with the energies of a calculator and those of their atoms."""
    random = np.random.default_rng(0)
    with DatasetWriter(path) as writer:
        for name in names * 3:
            atoms = molecule(name)
            atoms.positions += random.normal(0, 0.02, atoms.positions.shape)
            energy = calculator.get_property("energy", atoms) + random.normal(0, noise)
            energy += sum(LEVELS[level][z] for z in atoms.numbers)
            forces = calculator.get_property("forces", atoms)
            writer.append(atoms.numbers, atoms.positions, energy=float(energy), forces=forces)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint fitted to pbe, and data of two levels."""
    path = tmp_path_factory.mktemp("bias")
    potential = small_potential("schnet")
    save_checkpoint(path / "bare.safetensors", potential)
    ours = BiasGradCalculator(potential, device="cpu", dtype="float64")
    for level in LEVELS:
        labelled(path / f"{level}.h5", ours, level, noise=0.01)
    biasgrad(path, "fit-bias", "bare.safetensors", "pbe.h5", "-o", "p.safetensors")
    return path


def test_the_bias_of_a_calculator_is_written_and_used(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from ase.calculators.lj import LennardJones\n"
        "def soft(epsilon, sigma=1.0):\n"
        "    return LennardJones(epsilon=epsilon, sigma=sigma, rc=3.0, smooth=True)\n"
    )
    same = LennardJones(epsilon=0.25, sigma=1.1, rc=3.0, smooth=True)
    labelled(tmp_path / "x.h5", same, "pbe")
    command = ("fit-bias", "--calculator", "mine:soft", "x.h5", "-o", "zero.json")
    given = ("--calculator-arguments", "epsilon=0.25", "--calculator-arguments", '{"sigma": 1.1}')
    said = biasgrad(tmp_path, *command, *given)
    assert "energy zero: per-element" in said
    assert "MAE 0.000 meV" in said
    assert "calculating" not in said  # no progress but on a terminal
    fit = json.loads((tmp_path / "zero.json").read_text())["fit"]
    assert fit["calculator"]["name"] == "mine:soft"
    assert fit["calculator"]["arguments"] == {"epsilon": 0.25, "sigma": 1.1}
    assert fit["calculator"]["class"] == "ase.calculators.lj.LennardJones"
    assert fit["data"]["file"] == "x.h5"
    atoms = molecule("C2H6")
    atoms.calc = BiasedCalculator(same, tmp_path / "zero.json", strict=True)
    expected = same.get_potential_energy(atoms) + 2 * LEVELS["pbe"][6] + 6 * LEVELS["pbe"][1]
    assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-8)
    assert "exists; say --overwrite" in biasgrad(tmp_path, *command, *given, code=1)
    said = biasgrad(tmp_path, *command, "--overwrite", code=1)
    assert "calculator 'mine:soft', made with {}: soft() missing" in said


def test_calculators_that_ase_knows_and_ours_are_named(folder, tmp_path):
    copper = bulk("Cu", cubic=True)
    with DatasetWriter(tmp_path / "cu.h5") as writer:
        for k in range(4):
            copper.rattle(0.05, seed=k)
            energy = EMT().get_property("energy", copper) - 14.5
            writer.append(copper.numbers, copper.positions, energy=energy, cell=copper.cell.array,
                          pbc=copper.pbc)  # fmt: skip
    biasgrad(tmp_path, "fit-bias", "--calculator", "emt", "cu.h5", "-o", "emt.json")
    zero = json.loads((tmp_path / "emt.json").read_text())
    assert zero["energies"] == pytest.approx([-14.5 / 4])
    checkpoint = f"checkpoint={folder / 'bare.safetensors'}"
    said = biasgrad(
        tmp_path, "fit-bias", "--calculator", "biasgrad", "--calculator-arguments", checkpoint,
        folder / "pbe.h5", "-o", "ours.json", "--frames", ":8",
    )  # fmt: skip
    assert "8 frames of 8 compositions, rank 3 of 3 elements" in said


def test_anchors_fix_what_the_data_leaves_open(folder):
    line = ("fit-bias", "bare.safetensors", "pbe.h5", "-o", "anchored.safetensors", "--overwrite")
    (folder / "anchors.json").write_text('{"Cu": -5.5, "Cu2": [-11.0, 0.25]}')
    said = biasgrad(folder, *line, "--anchors", "anchors.json")
    assert "Cu (anchor): 0.000 meV" in said
    assert "rank 4 of 4 elements" in said
    bias = load_checkpoint(folder / "anchored.safetensors").potential.bias
    assert float(bias.per_element[29]) == pytest.approx(-5.5, abs=1e-9)
    for text in ('{"Xy": 1.0}', '{"Cu": "x"}', "[1]", '{"Cu": [1, 2, 3]}', "{"):
        (folder / "anchors.json").write_text(text)
        said = biasgrad(folder, *line, "--anchors", "anchors.json", code=1)
        assert "anchors.json: " in said
        assert "write anchors as" in said


def test_what_fit_bias_cannot_do_is_said(folder):
    line = ("fit-bias", "p.safetensors", "-o", "x.safetensors")
    assert "name a checkpoint and a dataset" in biasgrad(folder, *line, code=2)
    line = ("fit-bias", "--calculator", "emt", "pbe.h5", "-o", "x.safetensors")
    assert "written as *.json" in biasgrad(folder, *line, code=2)
    line = ("fit-bias", "--calculator", "magic", "pbe.h5", "-o", "x.json")
    assert "no calculator 'magic'" in biasgrad(folder, *line, code=1)
    line = ("fit-bias", "--calculator", "emt", "pbe.h5", "-o", "x.json")
    assert "--calculator-arguments" in biasgrad(folder, *line, "--device", "cpu", code=2)
    given = ("--calculator-arguments", "[1]")
    assert "neither JSON" in biasgrad(folder, *line, "--calculator-arguments", "{", code=2)
    assert "must be a JSON object" in biasgrad(folder, *line, *given, code=2)


def test_references_are_added_listed_and_chosen(folder, tmp_path):
    (tmp_path / "p.safetensors").write_bytes((folder / "p.safetensors").read_bytes())
    data = folder / "r2scan.h5"
    rebias = ("rebias", "p.safetensors", data, "--reference", "r2scan")
    said = biasgrad(tmp_path, *rebias, "--frames", ":8")
    assert "reference r2scan of default, r2scan" in said
    assert "has a reference 'r2scan' already" in biasgrad(tmp_path, *rebias, code=1)
    biasgrad(tmp_path, *rebias, "-o", "q.safetensors", "--overwrite")
    info = json.loads(biasgrad(tmp_path, "info", "p.safetensors"))
    assert info["reference"] == "default"
    fits = {name: reference["fit"] for name, reference in info["references"].items()}
    assert {name: fit["data"]["file"] for name, fit in fits.items()} == {
        "default": "pbe.h5",
        "r2scan": "r2scan.h5",
    }
    assert (fits["default"]["frames"], fits["r2scan"]["frames"]) == (24, 8)
    assert load_checkpoint(tmp_path / "q.safetensors").potential.bias_of("r2scan").fit_report[
        "frames"
    ] == 24  # fmt: skip
    errors = {}
    for name in ("default", "r2scan"):
        line = ("evaluate", "p.safetensors", data, "--reference", name, "--json", f"{name}.json")
        biasgrad(tmp_path, *line)
        errors[name] = json.loads((tmp_path / f"{name}.json").read_text())["energy"]["mae"]
    assert errors["r2scan"] < 0.05
    assert errors["default"] > 1.0
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=0)
    calcs = [
        BiasGradCalculator(tmp_path / "p.safetensors", device="cpu", reference=name)
        for name in ("default", "r2scan")
    ]
    one, two = ({p: c.get_property(p, atoms) for p in ("energy", "forces")} for c in calcs)
    assert np.array_equal(one["forces"], two["forces"])
    shift = sum(LEVELS["r2scan"][z] - LEVELS["pbe"][z] for z in atoms.numbers)
    assert two["energy"] - one["energy"] == pytest.approx(shift, abs=0.1)
    before, after = (
        load_checkpoint(path / "p.safetensors").potential.bias for path in (folder, tmp_path)
    )
    assert np.array_equal(before.per_element.numpy(), after.per_element.numpy())
    said = biasgrad(tmp_path, "rebias", "p.safetensors", data, "--reference", "a.b", code=1)
    assert "cannot be a name" in said


@pytest.fixture
def two_levels(folder, tmp_path):
    line = ("rebias", folder / "p.safetensors", folder / "r2scan.h5", "--reference", "r2scan")
    biasgrad(tmp_path, *line, "-o", "p.safetensors")
    return tmp_path


def test_energies_are_brought_from_one_reference_to_another(two_levels):
    atoms = [molecule("C2H6"), molecule("H2O")]
    for one in atoms:
        one.calc = LennardJones(rc=3.0, smooth=True)
        one.get_forces()
    write(two_levels / "a.extxyz", atoms)
    line = ("convert-energies", "a.extxyz", "-c", "p.safetensors")
    levels = ("--from", "default", "--to", "r2scan")
    said = biasgrad(two_levels, *line, *levels, "-o", "b.extxyz")
    assert "2 frames, energies from default to r2scan" in said
    assert "standard error of the difference: " in said
    for old, new in zip(
        read(two_levels / "a.extxyz", ":"), read(two_levels / "b.extxyz", ":"), strict=True
    ):
        shift = sum(LEVELS["r2scan"][z] - LEVELS["pbe"][z] for z in old.numbers)
        difference = new.get_potential_energy() - old.get_potential_energy()
        assert difference == pytest.approx(shift, abs=0.05)
        assert np.array_equal(old.get_forces(), new.get_forces())
    write(two_levels / "gold.extxyz", Atoms("Au"))
    (two_levels / "gold.extxyz").write_text("1\nenergy=1\nAu 0 0 0\n")
    line = ("convert-energies", "gold.extxyz", "-c", "p.safetensors")
    said = biasgrad(two_levels, *line, *levels, "-o", "c.extxyz", code=1)
    assert "frame 0 (Au): the difference of default and r2scan is not known" in said
    assert not (two_levels / "c.extxyz").exists()
    assert "'pbe' is unknown; there are default, r2scan" in biasgrad(
        two_levels, *line, "--from", "pbe", "--to", "r2scan", "-o", "c.extxyz", code=1
    )


def energy_in(said: str, begin: str) -> float:
    (line,) = [line for line in said.splitlines() if line.startswith(begin)]
    return float(line[len(begin) :].split()[0])


def test_reaction_energies_have_an_error(two_levels):
    reaction = ("reaction", "CH4 + 2 H2O -> CO2 + 4 H2", "-c", "p.safetensors", "--no-relax")
    said = biasgrad(two_levels, *reaction)
    calc = BiasGradCalculator(two_levels / "p.safetensors", device="cpu", dtype="float64")
    terms = {"CH4": -1, "H2O": -2, "CO2": 1, "H2": 4}
    expected = sum(nu * calc.get_potential_energy(molecule(name)) for name, nu in terms.items())
    assert energy_in(said, "reaction energy: ") == pytest.approx(expected, abs=1e-3)
    rows = np.stack([np.bincount(molecule(n).numbers, minlength=N_ELEMENTS) for n in terms])
    _, zero = calc.biases[0].reaction(rows, np.array(list(terms.values()), float))
    noise = calc.biases[0].fit_report["noise"]
    error = np.sqrt(zero**2 + noise**2 * sum(nu**2 for nu in terms.values()))
    assert energy_in(said, "standard error: ") == pytest.approx(error, abs=1e-4)
    assert error > 0.02
    # another reference has the same reaction but for its own small errors
    other = biasgrad(two_levels, *reaction, "--reference", "r2scan")
    assert energy_in(other, "reaction energy: ") == pytest.approx(expected, abs=0.5)


def test_structures_are_found_by_formula_name_or_built(two_levels):
    given = two_levels / "given"
    given.mkdir()
    stretched = molecule("H2O")
    stretched.positions *= 1.1
    write(given / "stretched.xyz", stretched)
    line = ("-c", "p.safetensors", "--no-relax")
    by_formula = biasgrad(two_levels, "reaction", "H2O -> H2O", *line, "--structures", "given")
    assert by_formula.count("stretched.xyz, as it is") == 2
    named = biasgrad(
        two_levels, "reaction", "OH2 -> stretched", *line, "--structures", "given/stretched.xyz"
    )
    assert energy_in(named, "reaction energy: ") == 0.0
    isomers = biasgrad(two_levels, "reaction", "C2H6O = CH3OCH3", *line)
    assert "lower than" in isomers
    energies = [energy_in(isomers, begin) for begin in ("-1 C2H6O: ", "+1 CH3OCH3: ")]
    assert energies[0] <= energies[1]


@pytest.mark.parametrize(
    ("equation", "message"),
    [
        ("CH4 + 2 O2 -> CO2 + H2O", "H 4 on the left and 2 on the right; O 4 on the left and 3"),
        ("CH4 + 2 O2", "write an equation"),
        ("CH4 + -> CO2", "is no species"),
        ("0 CH4 -> CH4", "takes no part"),
        ("Cu4 -> 4 Cu", "ase.build.molecule has no Cu4"),
        ("methane -> CH4", "'methane' is neither a formula nor the name of a structure"),
        ("SiH4 -> Si + 2 H2", "not determined by the data: the energy zero of SiH4, Si is not"),
    ],
)
def test_equations_that_cannot_be_read_are_told_why(folder, equation, message):
    assert message in biasgrad(folder, "reaction", equation, "-c", "p.safetensors", code=1)


def test_reactions_of_a_biased_calculator_and_of_crystals(tmp_path):
    copper, atom = bulk("Cu", cubic=True), Atoms("Cu")
    with DatasetWriter(tmp_path / "cu.h5") as writer:
        for k in range(4):
            copper.rattle(0.02, seed=k)
            energy = EMT().get_property("energy", copper) - 14.5
            writer.append(copper.numbers, copper.positions, energy=energy, cell=copper.cell.array,
                          pbc=copper.pbc)  # fmt: skip
        energy = EMT().get_property("energy", atom) - 14.5 / 4
        writer.append(atom.numbers, atom.positions, energy=energy)
    biasgrad(tmp_path, "fit-bias", "--calculator", "emt", "cu.h5", "-o", "zero.json")
    write(tmp_path / "solid.cif", bulk("Cu", cubic=True))
    write(tmp_path / "gas.xyz", atom)
    said = biasgrad(
        tmp_path, "reaction", "solid -> gas", "--calculator", "emt", "--zero", "zero.json",
        "--structures", ".", "--no-relax", code=1,
    )  # fmt: skip
    assert "ASE cannot read it as a structure" in said  # cu.h5's last frame or zero.json
    said = biasgrad(
        tmp_path, "reaction", "solid -> gas", "--calculator", "emt", "--zero", "zero.json",
        "--structures", "solid.cif", "--structures", "gas.xyz", "--no-relax",
    )  # fmt: skip
    solid = EMT().get_property("energy", bulk("Cu"))
    expected = EMT().get_property("energy", atom) - solid
    assert energy_in(said, "reaction energy: ") == pytest.approx(expected, abs=1e-3)
    line = ("reaction", "H2 -> 2 H", "--calculator", "emt")
    assert "--zero" in biasgrad(tmp_path, *line, code=2)
