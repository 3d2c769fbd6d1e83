"""What the programs are made of, in packages: see CONTRIBUTING.md for what may import what."""
