from skimage import data

from repertory.systems.pyramid_texture_filtering import filter_image

photograph = data.coffee()[100:260, 200:400]  # (H, W, 3) uint8; grey, alpha, floats too
smooth = filter_image(photograph, sigma_s=5, sigma_r=0.07)  # of the same shape and type
