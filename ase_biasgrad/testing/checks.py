"""The conformance list: every check under the number that it has there."""

from __future__ import annotations

from collections.abc import Sequence

from ase_biasgrad.testing import derivative_checks, geometry, results, state, with_ase
from ase_biasgrad.testing.subject import Subject
from ase_biasgrad.testing.verdicts import Check, Verdict, judged

CHECKS: tuple[Check, ...] = (
    Check(1, results.energy_is_a_float),
    Check(1, results.free_energy_is_offered),
    Check(2, results.stress_has_voigt_shape),
    Check(2, results.stress_of_a_molecule_is_refused),
    Check(3, results.energies_sum_to_the_energy),
    Check(3, results.stresses_sum_to_the_stress),
    Check(4, results.arrays_are_float64),
    Check(4, results.arrays_are_copies),
    Check(4, results.energy_is_resolved),
    Check(5, results.one_evaluation_serves_all),
    Check(6, results.only_standard_names_are_exported),
    Check(7, state.direct_calls_with_some_changes),
    Check(7, state.a_failure_leaves_no_results),
    Check(8, state.small_changes_are_seen),
    Check(8, state.results_follow_every_change),
    Check(8, state.a_charge_is_read_or_refused),
    Check(8, state.a_spin_is_read_or_refused),
    Check(8, state.a_new_charge_is_seen),
    Check(9, state.reset_forgets),
    Check(9, state.unknown_parameters_are_refused),
    Check(9, state.class_lists_of_ase_are_left_alone),
    Check(10, state.one_calculator_on_many_atoms),
    Check(10, state.a_copy_is_independent),
    Check(11, state.deep_copies_work),
    Check(11, state.pickles_work),
    Check(11, state.another_process_evaluates, starts_a_process=True),
    Check(11, state.description_is_json),
    Check(12, state.globals_are_left_alone),
    Check(12, state.it_prints_nothing),
    Check(12, state.importing_it_is_light, starts_a_process=True),
    Check(13, geometry.periodicity_in_some_directions),
    Check(13, geometry.open_directions_have_no_images),
    Check(13, geometry.the_cell_of_a_molecule_means_nothing),
    Check(13, geometry.slab_without_a_third_cell_vector),
    Check(13, geometry.atoms_outside_the_cell),
    Check(13, geometry.left_handed_cell),
    Check(13, geometry.small_cell_equals_its_supercell),
    Check(13, geometry.one_atom_in_a_cell),
    Check(13, geometry.isolated_atoms),
    Check(13, geometry.no_atoms),
    Check(14, geometry.lists_stay_exact),
    Check(15, geometry.positions_that_are_not_finite_are_refused),
    Check(15, geometry.a_flat_periodic_cell_is_refused),
    Check(15, geometry.unknown_elements_are_refused),
    Check(15, geometry.coincident_atoms_give_no_nan),
    Check(16, derivative_checks.forces_of_a_molecule_are_derivatives),
    Check(16, derivative_checks.forces_of_a_crystal_are_derivatives),
    Check(16, derivative_checks.stress_is_a_derivative),
    Check(16, derivative_checks.rotations_and_shifts_change_nothing),
    Check(16, derivative_checks.the_order_of_atoms_changes_nothing),
    Check(16, derivative_checks.distant_molecules_add_up),
    Check(17, with_ase.bfgs_goes_downhill),
    Check(17, with_ase.lbfgs_goes_downhill),
    Check(17, with_ase.fire_goes_downhill),
    Check(17, with_ase.cells_relax),
    Check(17, with_ase.equation_of_state_is_smooth),
    Check(17, with_ase.total_energy_is_conserved),
    Check(17, with_ase.langevin_dynamics_run),
    Check(17, with_ase.constant_pressure_dynamics_run),
    Check(17, with_ase.vibrations_run),
    Check(17, with_ase.phonons_run),
    Check(17, with_ase.neb_shares_one_calculator),
    Check(17, with_ase.trajectories_and_extxyz_keep_results),
    Check(17, with_ase.databases_keep_results),
    Check(17, with_ase.drivers_ask_for_properties),
    Check(17, with_ase.calls_one_after_another),
    Check(17, with_ase.socket_clients_run),
)


def verdicts_on(subject: Subject, checks: Sequence[Check] = CHECKS) -> list[Verdict]:
    """Run checks on a calculator and return a verdict for each."""
    return [judged(check, subject) for check in checks]
