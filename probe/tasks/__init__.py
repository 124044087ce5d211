"""What models are asked to do: inputs, pass keys, likelihoods."""
