"""The two shipped recipes on a real model, before and after, beside transformers.Trainer and PEFT."""
