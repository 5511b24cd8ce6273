"""Random settings."""

from hypothesis import strategies as st

from janus_dola import DoLaConfig
from janus_dola.settings import DrawSettings

_layers = st.integers(1, 30)
draw_settings = st.builds(
    DrawSettings,
    st.floats(-100, 100),
    st.just(0.0) | st.floats(1e-6, 100),
    st.none()
    | st.builds(
        DoLaConfig,
        st.just("auto") | st.lists(_layers, min_size=1, max_size=4),
        st.floats(0, 1),
        st.none() | st.just("final") | _layers,
    ),
    st.none() | st.text(min_size=1, max_size=5),
    st.integers(0, 100),
    st.floats(0, 1, exclude_min=True),
)
