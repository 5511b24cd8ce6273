"""The name under which the original integration has `janus_dola.original.run_batch_prompts`."""

from janus_dola.original.run_batch_prompts import main

if __name__ == "__main__":
    main()
