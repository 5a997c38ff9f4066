"""`diti edit`: exchange chunks between images, move attributes, reconstruct; one picture or a whole table."""

from __future__ import annotations

from diticli.commands import edit_options as options
from diticli.commands.edit_request import Request
from diticli.commands.options import BatchSizeOption, DeviceOption, JsonOption, ModelOption, SeedOption


def edit(
    sources: options.SourcesArgument,
    chunks: options.ChunksOption = None,
    grid: options.GridOption = False,
    out: options.OutOption = None,
    model: ModelOption = None,
    alphas: options.AlphasOption = None,
    noise: options.NoiseOption = None,
    reconstruct: options.ReconstructOption = False,
    attribute: options.AttributeOption = None,
    amount: options.AmountOption = None,
    probe: options.ProbeOption = None,
    dims: options.DimsOption = None,
    along: options.AlongOption = None,
    solver: options.SolverOption = None,
    steps: options.StepsOption = None,
    invert_steps: options.InvertStepsOption = None,
    decode_steps: options.DecodeStepsOption = None,
    precision: options.PrecisionOption = None,
    compile: options.CompileOption = None,
    official: options.OfficialOption = False,
    difference: options.DifferenceOption = False,
    separate: options.SeparateOption = None,
    animate: options.AnimateOption = None,
    dry_run: options.DryRunOption = False,
    batch_size: BatchSizeOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Exchange parts of the features of two images (chunks), or change an attribute, and show the pictures.

    A chunk is a part of an image's features: chunk 0 restores what the least noise hides (fine detail), the last
    chunk what only the most noise hides. A model has 64 of them; --grid shows what each range of them does.

    Images are encoded and inverted to noise; then their features are changed and decoded. Every output carries what
    is needed to make it again.

    Example: diti edit anna.jpg ben.jpg --chunks 10-20 -o out.png

    Example: diti edit faces:3 faces:8 --grid --alphas 0.5,1 --difference

    Example: diti edit faces:3 faces:8 --chunks 0-3 --animate out.webp --separate singles

    Example: diti edit anna.jpg ben.jpg --attribute Smiling --amount -0.6:0.6:7 --probe probe --dims 16

    Example: diti edit anna.jpg ben.jpg --reconstruct

    Example: diti edit pairs.csv -o edits

    A table has the columns a, b and, if wanted, chunks (several sets: 0-3;8-15), alphas, name. Finished pairs are
    skipped, failures listed in failed.csv. --official repeats the sampler of the official code.
    """
    request = Request(
        sources=tuple(sources),
        chunks=tuple(chunks or ()),
        grid=grid,
        out=out,
        model=model,
        alphas=alphas,
        noise=noise,
        reconstruct=reconstruct,
        attributes=tuple(attribute or ()),
        amount=amount,
        probe=probe,
        dims=dims,
        along=along,
        solver=solver,
        invert_steps=invert_steps or steps,
        decode_steps=decode_steps or steps,
        precision=precision,
        compile=compile,
        official=official,
        difference=difference,
        separate=separate,
        animate=animate,
        dry_run=dry_run,
        batch_size=batch_size,
        seed=seed,
        device=device,
        as_json=as_json,
    )
    request.check()
    from diticli.commands import edit_kinds

    edit_kinds.run(request)
