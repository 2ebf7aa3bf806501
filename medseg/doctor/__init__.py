"""`medseg doctor`: what this machine has, what each op takes and why, and what to mend."""
