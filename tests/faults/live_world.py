def run_live(seed: int) -> int:
    raise NotImplementedError
