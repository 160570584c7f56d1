"""The corpus that networks are trained on: sound scenes, speech and notes, synthesised as they are needed."""
