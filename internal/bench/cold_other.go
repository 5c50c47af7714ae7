//go:build !linux

package main

import "errors"

func dropCached(string) error {
	return errors.New("dropping cached pages: " + errors.ErrUnsupported.Error())
}
