"""Trains or evaluates a recipe.

    python main.py --config=configs/RECIPE.py[:variant[,key=value]] --workdir=DIR \\
        [--mode=train|evaluate] [--config.KEY=VALUE ...]

Exit status: 0 done, 2 a bad request (the message is on stderr), 75 stopped by a signal after
saving; 74 something could not be read or saved, 70 a step hung. After 70, 74, 75 and a kill the
same command goes on.
"""

from beit_jax.runtime import take_huge_pages

if __name__ == '__main__':
    take_huge_pages()
    from beit_jax.main import run

    run()
