"""What people look at after an evaluation: the HTML report and the page of a case."""
