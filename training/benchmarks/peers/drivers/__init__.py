"""One file for each peer; a new peer is a new file.

A driver runs in an environment where this package is not installed, so it imports nothing but the
standard library and NumPy until one of its functions is called, and has

- `TITLE`: name in tables,
- `REQUIREMENTS`: what pip installs into its environment; without any it runs in ours,
- `SOURCE`: where its authors publish the settings,
- `settings()`: all of these settings, as JSON values; they are part of a result's identity,
- `train(job)`: train on the frames of a `protocol.Job` until its time is over, write all that the
  potential needs to the folder `job.model`, and return what it did as JSON values, with `size` and,
  where there are any, `epochs`,
- `calculator(model)`: the potential in that folder as an ASE calculator.
"""
