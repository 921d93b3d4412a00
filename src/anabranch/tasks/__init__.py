"""Problems, and the judging of answers to them in processes that can be killed."""
