"""`python -m napari_sam2` is the command `napari-sam2`."""

from napari_sam2.cli import main

raise SystemExit(main())
