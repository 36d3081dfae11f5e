"""The parts of bench_relay: a fast upstream, a bare relay, clients."""
