"""The dash.js player: an unmodified dash.js in a headless Chromium, driven and recorded by `players.dash.player`."""
