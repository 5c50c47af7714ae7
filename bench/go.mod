module github.com/loratool/loratool/bench

go 1.26.0

require (
	github.com/loratool/loratool v0.0.0
	github.com/spf13/pflag v1.0.9
	golang.org/x/sys v0.49.0
	gonum.org/v1/gonum v0.17.0
)

require github.com/x448/float16 v0.8.4 // indirect

replace github.com/loratool/loratool => ../
