"""How actors and learner talk: messages, codec, session state machines, and the channels that carry them."""
