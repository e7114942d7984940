"""What tells two answers apart: extraction, spelling, guards, and the worker that asks the algebra."""
