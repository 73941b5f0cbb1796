"""A step of this project's learner beside one of TRL's GRPOTrainer, on the same model and the same ragged samples."""
