"""Learning rules that go forward in time: ``EProp``, ``OTTT``, and ``RTRL`` as their witness."""
