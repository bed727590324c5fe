"""What a trained network says of new scans: labels of patients, classes of images; and that network exported."""
