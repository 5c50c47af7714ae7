package kernel

//go:generate go -C _gen run ./gemm -pkg kernel -out ../gemm_amd64.s -stubs ../gemm_stubs_amd64.go
//go:generate go -C _gen run ./convert -pkg kernel -out ../convert_amd64.s -stubs ../convert_stubs_amd64.go
//go:generate go -C _gen run ./lowrank -pkg kernel -out ../lowrank_amd64.s -stubs ../lowrank_stubs_amd64.go
//go:generate go -C _gen run ./rows -pkg kernel -out ../rows_amd64.s -stubs ../rows_stubs_amd64.go
//go:generate go -C _gen run ./merge -pkg kernel -out ../merge_amd64.s -stubs ../merge_stubs_amd64.go
//go:generate go -C _gen run ./fourbit -pkg kernel -out ../fourbit_amd64.s -stubs ../fourbit_stubs_amd64.go
//go:generate go -C _gen run ./compare -pkg kernel -out ../compare_amd64.s -stubs ../compare_stubs_amd64.go
//go:generate go -C _gen run ./matvec -pkg kernel -out ../matvec_amd64.s -stubs ../matvec_stubs_amd64.go
//go:generate go -C _gen run ./search -pkg kernel -out ../search_amd64.s -stubs ../search_stubs_amd64.go
//go:generate go -C _gen run ./plain -pkg kernel -out ../plain_amd64.s -stubs ../plain_stubs_amd64.go
