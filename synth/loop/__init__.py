"""The parts of the training loop in `synth.train`: what it draws, steps, averages and resumes."""
