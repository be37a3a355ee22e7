"""Servers that stand beside a scanner: one bundle behind MRD, DICOM and OpenIGTLink."""
