"""How the embedded models are made: data, tokenizer, training, acceptance."""
