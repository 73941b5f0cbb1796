"""How actors and learner talk: messages, codec, session state machines; without I/O."""
