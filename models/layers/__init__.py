"""The blocks that the models' transforms and entropy models are made of."""
