//go:build !linux

package pyhost

import "errors"

// awaitDeath has no counterpart outside Linux: there a process's parent must say that it is gone.
func awaitDeath(int) error { return errors.ErrUnsupported }

func unreaped(int, int) (status int, ok bool) { return 0, false }
