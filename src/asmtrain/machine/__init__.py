"""Machine code of ELF files: its functions' bounds, and their text as a compiler would have written it."""
