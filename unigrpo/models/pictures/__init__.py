"""Pictures as codes and as features."""
