def test_probe(finished):
    print((finished.work / "printed.txt").read_text()[-6000:])
    import time

    for f in (
        lambda: finished.jobs(),
        lambda: finished.pending(),
        lambda: finished.snakemake("--summary").stdout,
        lambda: finished.snakemake("--forcerun", "condense_ablations", "-n").stdout,
    ):
        t = time.time()
        print(f(), time.time() - t)
    print(finished.root)
