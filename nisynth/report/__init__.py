"""Pictures and pages: what a person looks at to judge a run, a training or a network.

contact_sheet.py   images in a grid, one class per column; preview.py: of a run, at any time of it
curves.py          training by epoch, pruning by ratio (Figure 6), loss terms by iteration (Figure 5)
confusion.py       a confusion matrix
pictures.py        files, whole or not at all
"""
