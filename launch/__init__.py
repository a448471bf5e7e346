"""How the processes of a run start. Of this project it imports loopcoder_train.config at most."""
