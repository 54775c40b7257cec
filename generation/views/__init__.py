"""Pictures of a trace: a page to play it on, an animation, a heat map."""
