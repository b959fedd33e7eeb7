"""An adapter in the forms of other tools (PEFT, llama.cpp, plain checkpoints, the hub), there and back."""
