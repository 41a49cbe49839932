"""What fills the sockets `TextGenerator` and `AnswerScorer`: a model in this process, vLLM, or a server."""
